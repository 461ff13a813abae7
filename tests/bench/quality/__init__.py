"""Quality of the search, without Ray: siftune's pairs and other tools in the same simulation."""
