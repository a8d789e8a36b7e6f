"""Generation engines: requests in, finished answers out as they come."""
