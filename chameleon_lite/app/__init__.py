"""The method for own texts: corpora from files, fit, adapt, and the command line."""
