"""A class that has the name of another one."""

from perceivers.model.config import Configurable


class Readings(Configurable):
    """Something else than `test_config.Readings`."""

    def __init__(self, sensors: int) -> None:
        self.sensors = sensors
