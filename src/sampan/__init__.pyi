from sampan.engine.config import EngineConfig as EngineConfig
from sampan.engine.config import HandlerConfig as HandlerConfig
from sampan.engine.engine import Engine as Engine
from sampan.engine.model import ContainerSpec as ContainerSpec
from sampan.engine.model import Metadata as Metadata
from sampan.engine.model import Mount as Mount
from sampan.engine.model import Namespaces as Namespaces
from sampan.engine.model import PodSpec as PodSpec
from sampan.engine.model import PortMapping as PortMapping
from sampan.engine.model import Resources as Resources
from sampan.engine.model import Security as Security
from sampan.errors import SampanError as SampanError
from sampan.image.model import Image as Image
from sampan.image.model import Index as Index
from sampan.image.model import Layer as Layer

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
__version__: str
_API: dict[str, str]
