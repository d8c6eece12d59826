"""A class that has the name of another one."""

from perceivers.model.config import Configured


class Readings(Configured):
    """Something else than `test_config.Readings`."""

    def __init__(self, sensors: int) -> None:
        self.sensors = sensors
