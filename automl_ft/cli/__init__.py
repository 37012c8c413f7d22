"""The command line: commands, dispatch, exit codes and rendering; a thin layer over the API."""
