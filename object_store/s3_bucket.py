"""Create a bucket: the one request that obstore has not."""

from duckmesh.errors import Unavailable
from object_store.failures import unavailable
from object_store.options import StoreOptions

_DEFAULT_REGION = "us-east-1"


def create_bucket(bucket: str, options: StoreOptions) -> None:
    """Create the bucket, or find it ours already. Blocks within the options' limits.

    Raises Unavailable. The client (botocore, which s3fs brings) is imported on use: it is slow to
    load, and most processes never need it.
    """
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
    )

    region = options.region or _DEFAULT_REGION
    # AWS refuses its default region as a constraint, and refuses any other region without one.
    constraint = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        _client(options, region).create_bucket(
            Bucket=bucket, **({} if region == _DEFAULT_REGION else constraint)
        )
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in _THERE_ALREADY:
            raise _refused(bucket) from error
    except BotoCoreError as error:
        raise _refused(bucket) from error


# Who owns a bucket of that name shows at the first write: here it is enough that it exists.
_THERE_ALREADY = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def _refused(bucket: str) -> Unavailable:
    return unavailable(
        "create its bucket", bucket, "create it by hand, or check the rights of the credentials"
    )


def _client(options: StoreOptions, region: str):  # type: ignore[no-untyped-def]
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.session import get_session  # type: ignore[import-untyped]

    return get_session().create_client(
        "s3",
        region_name=region,
        endpoint_url=options.endpoint,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        aws_session_token=options.session_token,
        config=Config(
            connect_timeout=options.connect_timeout.total_seconds(),
            read_timeout=options.request_timeout.total_seconds(),
            retries={"total_max_attempts": 2},
            s3={"addressing_style": "virtual" if options.virtual_hosted_style else "path"},
        ),
    )
