"""The command line: one file a stage, `app` turns errors into exit codes."""
