"""The studies by name."""

from retnet.reproduce.comparison import TABLE5, TABLE6
from retnet.reproduce.config import StudyName
from retnet.reproduce.study import Study

STUDIES: dict[StudyName, Study] = {
    "table5": TABLE5,
    "table6": TABLE6,
}
