"""MiniVAPO: VAPO in one readable file (`minivapo.vapo`), and the tools around it."""

__version__ = "0.1.0"
