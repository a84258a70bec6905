"""What every other part uses: errors, messages, files, git, locks, signals."""
