"""The training loop: state, step, epoch, evaluation, checkpoints, log."""
