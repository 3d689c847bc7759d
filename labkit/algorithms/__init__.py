"""Algorithms: one file, one peer's round, the paper's equation beside the code."""

from labkit.algorithms.adpsgd import ADPSGD
from labkit.algorithms.allreduce import AllReduce
from labkit.algorithms.base import Algorithm, Batch, Peer, Round
from labkit.algorithms.byzantine import Byzantine
from labkit.algorithms.codistillation import Codistillation
from labkit.algorithms.compressed import Compressed
from labkit.algorithms.coteaching import CoTeaching
from labkit.algorithms.coteachingplus import CoTeachingPlus
from labkit.algorithms.diloco import DiLoCo
from labkit.algorithms.distillation import Distillation
from labkit.algorithms.easgd import EASGD
from labkit.algorithms.ensemble import Ensemble
from labkit.algorithms.expertparallel import ExpertParallel
from labkit.algorithms.fedadam import FedAdam
from labkit.algorithms.fedavg import FedAvg
from labkit.algorithms.fedavgm import FedAvgM
from labkit.algorithms.fedbuff import FedBuff
from labkit.algorithms.feddf import FedDF
from labkit.algorithms.feddyn import FedDyn
from labkit.algorithms.fedmd import FedMD
from labkit.algorithms.fednova import FedNova
from labkit.algorithms.fedprox import FedProx
from labkit.algorithms.fedyogi import FedYogi
from labkit.algorithms.gossip import Gossip
from labkit.algorithms.independent import Independent
from labkit.algorithms.localsgd import LocalSGD
from labkit.algorithms.measured import Measured
from labkit.algorithms.mesh import Mesh
from labkit.algorithms.mutual import Mutual
from labkit.algorithms.parameterserver import ParameterServer
from labkit.algorithms.pipeline import Pipeline
from labkit.algorithms.postlocalsgd import PostLocalSGD
from labkit.algorithms.powersgd import PowerSGD
from labkit.algorithms.private import Private
from labkit.algorithms.robust import Robust
from labkit.algorithms.scaffold import SCAFFOLD
from labkit.algorithms.secure import Secure
from labkit.algorithms.sequenceparallel import SequenceParallel
from labkit.algorithms.tensorparallel import TensorParallel
from labkit.algorithms.wrapper import Wrapper
from labkit.algorithms.zero import ZeRO

__all__ = [
    "ADPSGD",
    "EASGD",
    "SCAFFOLD",
    "Algorithm",
    "AllReduce",
    "Batch",
    "Byzantine",
    "CoTeaching",
    "CoTeachingPlus",
    "Codistillation",
    "Compressed",
    "DiLoCo",
    "Distillation",
    "Ensemble",
    "ExpertParallel",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDF",
    "FedDyn",
    "FedMD",
    "FedNova",
    "FedProx",
    "FedYogi",
    "Gossip",
    "Independent",
    "LocalSGD",
    "Measured",
    "Mesh",
    "Mutual",
    "ParameterServer",
    "Peer",
    "Pipeline",
    "PostLocalSGD",
    "PowerSGD",
    "Private",
    "Robust",
    "Round",
    "Secure",
    "SequenceParallel",
    "TensorParallel",
    "Wrapper",
    "ZeRO",
]


def __dir__() -> list[str]:
    return __all__
