"""``python -m planish`` is the command ``planish``."""

from planish.cli import main

if __name__ == "__main__":
    main()
