"""Scheduled acts: what has to be called when its time has come, such as closing a book.

Every utility's first peer runs an agent with its operator's identity. It asks the contracts what is
due (any function named `Due`: a list of calls) and submits that. It decides nothing: when a call is
due, with what argument, and whether it still holds is up to the contracts, and a call that another
utility's agent made first changes nothing.
"""

from .agent import Agent, AgentError, AgentSettings, Gateway

__all__ = ["Agent", "AgentError", "AgentSettings", "Gateway"]
