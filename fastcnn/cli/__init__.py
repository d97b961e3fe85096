"""The `fastcnn` command and its subcommands."""
