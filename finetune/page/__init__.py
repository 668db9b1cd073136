"""Self-contained HTML pages: templates, pictures and charts. Knows nothing of runs."""
