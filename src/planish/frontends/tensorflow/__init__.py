"""The TensorFlow frontend: models of TensorFlow and Keras become graphs.

`import_model` in `convert.py` is the way in; `load.py` reads every kind of file or object;
`analysis.py` tells which ops could not be converted. One file of converters a family of ops.
"""
