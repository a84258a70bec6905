"""What every other part uses: errors, messages, files, locks, signals."""
