"""Language models: architecture, quantisers, training, running with a trace."""
