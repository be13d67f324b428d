"""How a model can fail, by who is to blame: its version, a batch, or neither."""


class CannotLoad(Exception):
    """The model version cannot be served; the reason is for the operator."""


class BatchFailed(Exception):
    """The batch gave no outputs.

    Attributes:
        suspect: whether it may be the batch's own fault.
        crashed: whether the process died or hung, rather than give an error.
    """

    def __init__(self, reason: str, *, suspect: bool, crashed: bool) -> None:
        super().__init__(reason)
        self.suspect = suspect
        self.crashed = crashed


class ModelFailed(BatchFailed):
    """The model is given up for now: each request of the batch fails for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, suspect=False, crashed=False)
