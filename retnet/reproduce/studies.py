"""The studies by name."""

from retnet.reproduce.comparison import TABLE5, TABLE6
from retnet.reproduce.config import StudyName
from retnet.reproduce.context import TABLE8
from retnet.reproduce.controls import CONTROLS
from retnet.reproduce.figure6 import FIGURE6
from retnet.reproduce.recall_study import RECALL
from retnet.reproduce.size import FIGURE5
from retnet.reproduce.study import Study
from retnet.reproduce.table1 import TABLE1
from retnet.reproduce.table3 import TABLE3
from retnet.reproduce.table4 import TABLE4

STUDIES: dict[StudyName, Study] = {
    "table1": TABLE1,
    "table3": TABLE3,
    "table4": TABLE4,
    "table5": TABLE5,
    "table6": TABLE6,
    "table8": TABLE8,
    "figure5": FIGURE5,
    "figure6": FIGURE6,
    "recall": RECALL,
    "controls": CONTROLS,
}
