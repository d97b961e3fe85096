"""From settings to a training that is ready to start: plan, network, loaders, probes, dry runs."""
