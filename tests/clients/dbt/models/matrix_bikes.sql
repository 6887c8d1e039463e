{{ config(materialized='view') }}
select id, km from {{ ref('matrix_trips') }} where kind = 'bike'
