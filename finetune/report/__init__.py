"""What a run will do, what it did, and how runs compare."""
