"""The activations that a config may name."""

from torch import nn

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU}
ACTIVATIONS |= {"gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
