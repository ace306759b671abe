"""History: official files into the tables that live rows are in. A batch job, it ends by itself."""
