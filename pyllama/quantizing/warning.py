"""What whoever quantizes should know and need not be stopped by."""


class QuantizeWarning(UserWarning):
    """The file that is made says less than its source, or had less to begin with."""
