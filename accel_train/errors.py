"""The errors a person can mend. The command line prints them as one line and exits with code 2."""


class UserError(Exception):
    """Something in the config, the command or the data is wrong; the message says what, where and what to do."""


class DataError(UserError):
    """A file or record cannot be read as it should. The message names the file and the place in it."""


class EvaluationError(RuntimeError):
    """An evaluation on held-out data failed."""


class NonFiniteError(RuntimeError):
    """The loss, the gradient or the weights stopped being finite."""
