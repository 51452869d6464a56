"""What a bank should be: studies of machines, each a table of plain rows that a command prints and a notebook draws."""
