"""The parts of the report's page: what it reads, its moving pictures, plots, sections and words. Imports no torch."""
