"""Sampan: a complete container runtime stack.

The Python API's names are here and are loaded when first used; importing the package itself costs nothing:

    import sampan

    engine = sampan.Engine(sampan.EngineConfig(), namespace="default")

Their types are in the stub beside this file: an import here, even one for types alone, would stand above every layer.
"""

__version__ = "0.1.0"

_API = {
    "ContainerSpec": "sampan.engine.model",
    "Engine": "sampan.engine.engine",
    "EngineConfig": "sampan.engine.config",
    "HandlerConfig": "sampan.engine.config",
    "Image": "sampan.image.model",
    "Index": "sampan.image.model",
    "Layer": "sampan.image.model",
    "Metadata": "sampan.engine.model",
    "Mount": "sampan.engine.model",
    "Namespaces": "sampan.engine.model",
    "PodSpec": "sampan.engine.model",
    "PortMapping": "sampan.engine.model",
    "Resources": "sampan.engine.model",
    "SampanError": "sampan.errors",
    "Security": "sampan.engine.model",
}

__all__ = [
    "ContainerSpec",
    "Engine",
    "EngineConfig",
    "HandlerConfig",
    "Image",
    "Index",
    "Layer",
    "Metadata",
    "Mount",
    "Namespaces",
    "PodSpec",
    "PortMapping",
    "Resources",
    "SampanError",
    "Security",
    "__version__",
]


def __getattr__(name: str) -> object:
    home = _API.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value
