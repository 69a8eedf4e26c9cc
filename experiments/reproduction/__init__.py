"""The whole paper by one command: what to run, running what is missing, and a report of the paper's claims."""
