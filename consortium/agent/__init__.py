"""Scheduled acts: what has to be called when its time has come, such as closing a book.

Every utility's first peer runs an agent with its operator's identity. It asks the contracts what is
due (functions named `Due`, and a few more: each a list of calls) and submits that. It decides
nothing: when a call is due, with what argument, and whether it still holds is up to the contracts,
and a call that another utility's agent made first changes nothing. Taking supply away from homes it
asks about only where its utility's `agent.json` says so.
"""

from .agent import Agent, AgentError, AgentSettings, Gateway, asked_of

__all__ = ["Agent", "AgentError", "AgentSettings", "Gateway", "asked_of"]
