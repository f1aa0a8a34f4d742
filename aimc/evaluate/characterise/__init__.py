"""What a language model costs to run, by its length: time, memory, energy and classes of operators, measured; and the
same with attention or states on gain cells, estimated.

`train.characterise` calls it, figures and notebooks read what it returns. It imports transformers, and the cost model
of `aimc.circuit`.
"""

from aimc.evaluate.characterise.crossover import Crossover, Winner
from aimc.evaluate.characterise.estimates import CostEstimate
from aimc.evaluate.characterise.operators import CLASSES
from aimc.evaluate.characterise.point import Phase, Point
from aimc.evaluate.characterise.running import LENGTHS, Characterisation, Plan, characterise
from aimc.evaluate.characterise.subjects import Subject, UnknownModel, subject

__all__ = [
    "CLASSES",
    "LENGTHS",
    "Characterisation",
    "CostEstimate",
    "Crossover",
    "Phase",
    "Plan",
    "Point",
    "Subject",
    "UnknownModel",
    "Winner",
    "characterise",
    "subject",
]
