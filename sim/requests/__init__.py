"""Ordinary reads and writes: the compiled memory controller and the AiM host unit."""

from nearbank.sim.requests.controller import Commands, RequestResult, Trace, serve

__all__ = ["Commands", "RequestResult", "Trace", "serve"]
