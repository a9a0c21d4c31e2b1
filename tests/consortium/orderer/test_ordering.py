"""Three orderers, real gRPC and TLS: what is acknowledged is in everybody's blocks."""

import asyncio
from collections import Counter
from dataclasses import replace

import grpc
import pytest
from conftest import (
    CHANNEL,
    Network,
    NetworkFactory,
    broadcast,
    deliver,
    seek,
    until,
)
