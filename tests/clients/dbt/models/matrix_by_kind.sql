select kind, count(*) as trips, sum(km) as km
from {{ ref('matrix_trips') }}
group by kind
