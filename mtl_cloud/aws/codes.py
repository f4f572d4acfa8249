"""AWS's error codes that runs can meet: code -> class, cause, next step.

The classes and their EC2 codes are the union of what Karpenter, ParallelCluster, dstack and the EC2 API reference know;
those of Auto Scaling, SageMaker and smaller services are the exceptions that their API models declare. A code may end
in ``*`` for all that begin so. ``Server.`` and ``Client.`` codes are reasons of an instance's end (``StateReason``);
names like ``NoCredentialsError`` are botocore's classes, for requests that AWS never answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["ACTIONS", "CODES", "ErrorClass", "KnownCode"]


class ErrorClass(StrEnum):
    """The class of an error. ``UNKNOWN`` is none of the nine classes: the error is then shown as AWS returned it."""

    CAPACITY = "capacity"
    NOT_OFFERED = "not_offered"
    QUOTA = "quota"
    SUBNET = "subnet"
    THROTTLE = "throttle"
    SERVER = "server"
    CREDENTIALS = "credentials"
    PERMISSION = "permission"
    PERMANENT = "permanent"
    UNKNOWN = "unknown"

    @property
    def may_pass(self) -> bool:
        """Whether retrying the same request may succeed."""
        return self in {ErrorClass.CAPACITY, ErrorClass.THROTTLE, ErrorClass.SERVER}


@dataclass(frozen=True)
class KnownCode:
    """A row of the table."""

    code: str
    error_class: ErrorClass
    cause: str
    action: str


ACTIONS: Final[dict[ErrorClass, str]] = {
    ErrorClass.CAPACITY: "AWS keeps trying the job's other zones and types; name more of them, or "
    "`purchase: spot_then_on_demand`",
    ErrorClass.NOT_OFFERED: "choose a type or region that has it: `mtl-cloud instances --region REGION`",
    ErrorClass.QUOTA: "ask for more at Service Quotas (`mtl-cloud plan` names the quota's code, have and need), or use "
    "a smaller type or another region",
    ErrorClass.SUBNET: "use a larger subnet, or free addresses in this one; other zones are tried by themselves",
    ErrorClass.THROTTLE: "wait; the request is repeated more slowly",
    ErrorClass.SERVER: "wait and repeat; see AWS's health dashboard if it lasts",
    ErrorClass.CREDENTIALS: "log in again: `aws sso login`, `aws configure`, or AWS_PROFILE",
    ErrorClass.PERMISSION: "have this action allowed; `mtl-cloud iam` prints the policy that mtl-cloud needs",
    ErrorClass.PERMANENT: "correct the request; repeating it changes nothing",
    ErrorClass.UNKNOWN: "read AWS's own words; nothing is assumed of a code that is not in the table",
}

_PROFILE = "`mtl-cloud bootstrap` makes what is missing"

_ROWS: Final[dict[ErrorClass, tuple[tuple[str, ...], ...]]] = {
    ErrorClass.CAPACITY: (
        ("InsufficientInstanceCapacity", "the zone has no such machine free at present"),
        ("InsufficientHostCapacity", "the zone has no dedicated host free at present"),
        ("InsufficientReservedInstanceCapacity", "the zone has too few machines free for the reserved instances"),
        ("InsufficientCapacityOnHost", "the dedicated host is full"),
        ("InsufficientCapacity", "AWS has too few machines free for the request at present"),
        (
            "ReservationCapacityExceeded",
            "the capacity reservation is in use by other instances",
            "end them, enlarge the reservation, or leave it out",
        ),
        ("UnfulfillableCapacity", "AWS has too few machines free for the request at present"),
        ("SpotMaxPriceTooLow", "spot costs more than the price that was offered for it", "set no maximum price"),
        ("LimitedInstanceCapacity", "AWS has few such machines, and gives none away at present"),
        ("Server.InsufficientInstanceCapacity", "the machine was promised and then not there"),
        ("Server.SpotInstanceTermination", "spot took the instance back", "the run resumes on the next instance"),
        ("Server.SpotInstanceShutdown", "spot took the instance back", "the run resumes on the next instance"),
        ("CapacityError", "SageMaker has no such machine free at present", "submit again later, or name further types"),
    ),
    ErrorClass.NOT_OFFERED: (
        ("Unsupported", "the type is not offered in that zone, or not in this configuration"),
        ("UnsupportedOperation", "the type does not offer that in this zone or region"),
        ("InvalidAvailabilityZone", "the zone does not exist or is closed to this account"),
    ),
    ErrorClass.QUOTA: (
        ("VcpuLimitExceeded", "the account may run fewer vCPUs of this family and market than the machine has"),
        ("InstanceLimitExceeded", "the account may run no further instance of this type"),
        ("MaxSpotInstanceCountExceeded", "the account may run no further spot instance of this family"),
        ("SpotInstanceCountLimitExceeded", "the account may run no further spot instance of this family"),
        ("MaxSpotFleetRequestCountExceeded", "the account has as many spot requests as it may"),
        ("MaxFleetCountExceeded", "the account has as many fleets as it may"),
        ("AddressLimitExceeded", "the account has as many elastic addresses as it may"),
        ("VolumeLimitExceeded", "the account has as much EBS storage as it may"),
        ("Client.VolumeLimitExceeded", "the account has as much EBS storage as it may"),
        ("InsufficientVolumeCapacity", "no EBS storage of that kind is left for the account"),
        ("LimitExceeded", "the account has as many of these as it may"),
        ("LimitExceededException", "the account has as many of these as it may"),
        ("QuotaExceededException", "the account has as many of these as it may"),
        (
            "ResourceLimitExceeded",
            "SageMaker's own quota of the type and use (0 in new accounts), or a type that the region does not have",
            "ask Service Quotas, service `sagemaker`, for `TYPE for training job usage` (or `spot training job usage`)",
        ),
    ),
    ErrorClass.SUBNET: (("InsufficientFreeAddressesInSubnet", "the subnet has too few free addresses"),),
    ErrorClass.THROTTLE: (
        ("RequestLimitExceeded", "the account asks this API too often"),
        ("Throttling", "the account asks this API too often"),
        ("ThrottlingException", "the account asks this API too often"),
        ("ThrottledException", "the account asks this API too often"),
        ("RequestThrottled", "the account asks this API too often"),
        ("TooManyRequestsException", "the account asks this API too often"),
        ("EC2ThrottledException", "the account asks EC2 too often"),
        ("SlowDown", "the bucket is asked too often"),
        ("ResourceContention", "something else is changing the same group", "wait a moment; the request is repeated"),
        ("ScalingActivityInProgress", "the group is still busy", "wait for it; the request is repeated"),
        ("IdempotentCallInProgress", "the same request is still being worked on", "wait for it"),
    ),
    ErrorClass.SERVER: (
        ("InternalError", "a failure inside AWS"),
        ("InternalFailure", "a failure inside AWS"),
        ("InternalServerError", "a failure inside AWS"),
        ("InternalServiceError", "a failure inside AWS"),
        ("InternalErrorException", "a failure inside AWS"),
        ("ServerException", "a failure inside AWS"),
        ("ServerInternal", "a failure inside AWS"),
        ("ServiceException", "a failure inside AWS"),
        ("ServiceFailure", "a failure inside AWS"),
        ("ServiceUnavailable", "AWS is overloaded"),
        ("ServiceUnavailableException", "AWS is overloaded"),
        ("Unavailable", "AWS is overloaded"),
        ("RequestTimeout", "the request took too long"),
        ("Server.InternalError", "the instance's host failed", "the run resumes on the next instance"),
        (
            "EndpointConnectionError",
            "the endpoint cannot be reached",
            "check the network, the region, AWS_ENDPOINT_URL",
        ),
        ("ConnectTimeoutError", "the endpoint does not answer", "check the network, the region, AWS_ENDPOINT_URL"),
        ("ReadTimeoutError", "the answer took too long"),
        ("ConnectionClosedError", "the connection was cut"),
        ("ProxyConnectionError", "the proxy cannot be reached", "check HTTPS_PROXY"),
        ("SSLError", "the connection could not be secured", "check proxies, and AWS_CA_BUNDLE"),
        ("InvalidInstanceID.NotFound", "the instance is so new that not all of AWS knows it yet, or it is long gone"),
        ("EC2InstanceNotFoundException", "the instance is so new that not all of AWS knows it yet, or it is gone"),
        ("EC2InstanceUnavailableException", "the instance does not answer yet"),
    ),
    ErrorClass.CREDENTIALS: (
        ("ExpiredToken", "the login has run out"),
        ("ExpiredTokenException", "the login has run out"),
        ("RequestExpired", "the request came too late: this machine's clock is wrong", "set the clock (NTP)"),
        ("RequestTimeTooSkewed", "this machine's clock is wrong", "set the clock (NTP)"),
        ("InvalidClientTokenId", "AWS does not know the access key"),
        ("InvalidAccessKeyId", "AWS does not know the access key"),
        ("SignatureDoesNotMatch", "the secret key does not belong to the access key"),
        ("IncompleteSignature", "the request is not signed as it should be"),
        ("MissingAuthenticationToken", "the request is not signed"),
        ("AuthFailure", "AWS could not tell who asks, or the region is not switched on for the account"),
        ("AuthException", "AWS could not tell who asks"),
        ("UnrecognizedClientException", "AWS does not know the access key, or not in this region"),
        ("NoCredentialsError", "no credentials were found"),
        ("PartialCredentialsError", "half of the credentials is missing"),
        ("CredentialRetrievalError", "the credentials could not be fetched"),
        ("TokenRetrievalError", "the single sign-on session has run out", "`aws sso login`"),
        ("SSOTokenLoadError", "there is no single sign-on session", "`aws sso login`"),
        ("UnauthorizedSSOTokenError", "the single sign-on session has run out", "`aws sso login`"),
        ("ProfileNotFound", "the AWS configuration has no such profile", "see `aws configure list-profiles`"),
    ),
    ErrorClass.PERMISSION: (
        ("UnauthorizedOperation", "no policy allows the action to who asks, or one forbids it"),
        ("AccessDenied", "no policy allows the action to who asks, or one forbids it"),
        ("AccessDeniedException", "no policy allows the action to who asks, or one forbids it"),
        ("DependencyAccessDeniedException", "no policy allows an action that this one needs"),
        (
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "the account has no service-linked role for spot, and who asks may not make it",
            "`mtl-cloud bootstrap`, or: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
        ),
        ("ServiceLinkedRoleFailure", "the service-linked role of Auto Scaling is missing or not ready", _PROFILE),
        (
            "OptInRequired",
            "the account is not subscribed to the service, or the region is not switched on",
            "switch it on in the account's settings",
        ),
        ("PendingVerification", "AWS is still verifying the account", "wait for AWS's mail, or ask AWS's support"),
        ("Blocked", "AWS has blocked the account", "ask AWS's support"),
        ("AWSServiceAccessNotEnabledException", "the organisation has not given the service access"),
        ("DecryptionFailure", "the secret's KMS key may not be used by who asks"),
        ("KMSKeyNotAccessibleFault", "the KMS key may not be used by who asks"),
        (
            "Client.InternalError",
            "the disk's KMS key may not be used by Auto Scaling's service-linked role, or is switched off",
            "give the role a grant on the key, or use the account's default key",
        ),
    ),
    ErrorClass.PERMANENT: (
        (
            "InvalidAMIID.*",
            "the machine image does not exist in this region, or is gone",
            "plan again: it is looked up",
        ),
        ("InvalidAMIName.*", "the machine image does not exist in this region, or is gone", "plan again"),
        ("InvalidParameter*", "a value in the request is wrong, or does not fit the others"),
        ("InvalidSubnetID.*", "the subnet does not exist", _PROFILE),
        ("InvalidVpcID.*", "the VPC does not exist", _PROFILE),
        ("InvalidGroup.*", "the security group does not exist", _PROFILE),
        ("InvalidGroupId.*", "the security group does not exist", _PROFILE),
        ("InvalidKeyPair.*", "the key pair does not exist in this region"),
        ("InvalidUserData.Malformed", "the start script is over 16 KB, or not base64"),
        ("InvalidCapacityReservationId.*", "the capacity reservation does not exist, or is not ours"),
        ("InvalidLaunchTemplate*", "the launch template does not exist, or its name is taken"),
        ("InvalidBlockDeviceMapping", "the disk does not fit the machine image", "raise `compute.disk_gib`"),
        ("InvalidSnapshot.*", "the disk's snapshot does not exist, or is not ours"),
        ("Client.InvalidSnapshot.NotFound", "the disk's snapshot does not exist, or is not ours"),
        ("InvalidIamInstanceProfile*", "the instance profile does not exist", _PROFILE),
        ("Invalid*", "a value in the request is wrong"),
        ("IdempotentParameterMismatch", "the same token was used before, for another request"),
        ("IdempotentInstanceTerminated", "the token's instance is gone: the token is used up"),
        ("MissingParameter", "the request lacks a value"),
        ("UnknownParameter", "the request has a value that this API does not know"),
        ("ParamValidationError", "the request does not fit the API's shape"),
        ("ValidationError", "a value in the request is wrong, or names what does not exist"),
        ("ValidationException", "a value in the request is wrong, or names what does not exist"),
        ("MalformedPolicyDocument", "the policy is not valid IAM JSON"),
        ("UnknownServiceError", "boto3 is too old for this service", "pip install --upgrade 'mtl-cloud[aws]'"),
        ("NoRegionError", "no region was given", "set compute.region, or AWS_REGION"),
        ("EndpointProviderError", "the service does not exist in this region, or the region's name is wrong"),
        ("AlreadyExists", "the name is taken"),
        ("AlreadyExistsException", "the name is taken"),
        ("EntityAlreadyExists", "the name is taken"),
        ("ResourceAlreadyExistsException", "the name is taken"),
        ("TokenAlreadyExistsException", "the same token was used before"),
        ("InvalidGroup.Duplicate", "the security group's name is taken"),
        ("ResourceInUse", "the name is taken, or something still uses it"),
        ("ResourceInUseException", "something still uses it"),
        ("DependencyViolation", "something else still uses it", "remove that first"),
        ("ResourceNotFound", "there is no such thing in this region"),
        ("ResourceNotFoundException", "there is no such thing in this region"),
        ("NotFoundException", "there is no such thing in this region"),
        ("NoSuchEntity", "there is no such role, profile or policy", _PROFILE),
        ("NoSuchBucket", "there is no such bucket", "create it, or correct the URL; " + _PROFILE),
        ("NoSuchKey", "there is no such object"),
        ("NoSuchResourceException", "there is no such quota in this region"),
        ("ParameterNotFound", "there is no such SSM parameter in this region"),
        ("ParameterVersionNotFound", "the SSM parameter has no such version"),
        ("RepositoryNotFoundException", "the registry has no such repository", _PROFILE),
        ("ImageNotFoundException", "the repository has no such image", "`mtl-cloud image push`"),
        ("ChangeSetNotFound", "the change set is gone", "run `mtl-cloud bootstrap` again"),
        ("InsufficientCapabilitiesException", "the stack makes IAM roles, which must be acknowledged"),
        ("ExpiredNextTokenException", "the page of a listing was asked for too late"),
        ("IllegalArgumentException", "a value in the request is wrong"),
        ("TagPolicyViolationException", "the organisation's tag policy forbids these tags"),
        ("ActiveInstanceRefreshNotFound", "the group is not being refreshed"),
        ("InstanceRefreshInProgress", "the group is being refreshed"),
        ("IrreversibleInstanceRefresh", "the group's refresh cannot be undone"),
        ("EC2InstanceStateInvalidException", "the instance is not running"),
        ("Client.InstanceInitiatedShutdown", "the instance shut itself down", "see `mtl-cloud logs`"),
        ("Client.UserInitiatedShutdown", "somebody stopped the instance"),
        ("ClientError", "SageMaker could not read an input, pull the image or use the role", "its message says which"),
        ("AlgorithmError", "the training program failed", "see `mtl-cloud logs`"),
    ),
}

CODES: Final[dict[str, KnownCode]] = {
    code: KnownCode(code, error_class, cause, own[0] if own else ACTIONS[error_class])
    for error_class, rows in _ROWS.items()
    for code, cause, *own in rows
}
"""Code, or a prefix of codes that ends in ``*`` -> its row."""
