"""What a run bears: kills, signals, damaged files and other runs, by real processes on real folders."""
