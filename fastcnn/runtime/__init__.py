"""The process and its machine: ranks, devices, signals, copies to the device."""
