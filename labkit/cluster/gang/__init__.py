"""The gang: ranks that start together on workers and talk by torch.distributed."""
