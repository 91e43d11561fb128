"""The commands, one module each: a dataclass `Arguments`, whose docstrings are the help, and `run(args)`.

Where the defaults depend on a preset or a run, the module also has `read(words)`, which makes the arguments. Modules
import what is heavy inside `run`, so that a wrong word is refused at once.
"""
