"""Single-particle cryo-EM from micrographs to a 3D density map."""

__version__ = "0.1.0"
