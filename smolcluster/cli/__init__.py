"""What a person types, and what comes back: exit code 0 done, 1 failed, 2 wrong configuration, 130 interrupted."""
