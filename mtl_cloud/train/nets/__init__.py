"""The networks: VGG16, AlexNet, YOLOv3, FCN-ResNet50, and MTL-Net, which trains three of them jointly."""

from mtl_cloud.train.nets.build import build_network, decay_groups
from mtl_cloud.train.nets.network import Network

__all__ = ["Network", "build_network", "decay_groups"]
