"""Other runtimes beside Planish, each in a process of its own, to compare with and to check.

`worker` is the program in that process (it needs nothing of Planish, so that it can run in another
environment), `process` the handle on it, `catalog` what each peer needs and reads.
"""
