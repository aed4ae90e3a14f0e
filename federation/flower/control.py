"""The SuperLink's Control API, through which the study's server starts runs and registers nodes."""

from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

__all__ = [
    "ApiErrorCode",
    "ControlHttpClient",
    "FlowerError",
    "ListNodesRequest",
    "ListRunsRequest",
    "RegisterNodeRequest",
    "RuntimeVersionHttpInterceptor",
    "SimulationConfig",
    "StartRunRequest",
    "StopRunRequest",
    "StreamLogsRequest",
    "UnregisterNodeRequest",
]
