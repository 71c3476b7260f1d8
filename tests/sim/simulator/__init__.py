"""A deterministic world for gossip machines; `simulation` is where to start reading."""

from .network import Conditions
from .node import Node
from .simulation import Simulation, SimulationFailure

__all__ = ["Conditions", "Node", "Simulation", "SimulationFailure"]
