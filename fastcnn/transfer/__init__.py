"""Transfer learning: published weights, their adaptation to a network, frozen layers."""
