"""CIFAR: trainings that take hours, in pieces that can be resumed."""
