from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_INT32: _ClassVar[DType]
    DTYPE_INT16: _ClassVar[DType]
    DTYPE_INT8: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_NONE: _ClassVar[Codec]
    CODEC_FLOAT16: _ClassVar[Codec]
    CODEC_BFLOAT16: _ClassVar[Codec]
    CODEC_INT8_BLOCKWISE: _ClassVar[Codec]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_TRAIN: _ClassVar[Mode]
    MODE_EVALUATE: _ClassVar[Mode]
    MODE_DELIVER: _ClassVar[Mode]
    MODE_REHEARSE: _ClassVar[Mode]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_CAUSAL_LM: _ClassVar[Task]
    TASK_MASKED_LM: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]

class OptimizerHandover(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZER_HANDOVER_UNSPECIFIED: _ClassVar[OptimizerHandover]
    OPTIMIZER_HANDOVER_FULL: _ClassVar[OptimizerHandover]
    OPTIMIZER_HANDOVER_RESET: _ClassVar[OptimizerHandover]
    OPTIMIZER_HANDOVER_DEVICE: _ClassVar[OptimizerHandover]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_LOAD: _ClassVar[Stage]
    STAGE_FORWARD: _ClassVar[Stage]
    STAGE_ENCODE: _ClassVar[Stage]
    STAGE_WAIT: _ClassVar[Stage]
    STAGE_BACKWARD: _ClassVar[Stage]
    STAGE_OPTIMIZER: _ClassVar[Stage]
    STAGE_TEACHER: _ClassVar[Stage]
    STAGE_DECODE: _ClassVar[Stage]
    STAGE_RECEIVE: _ClassVar[Stage]
    STAGE_STUDENT: _ClassVar[Stage]

class TaskStart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_START_UNSPECIFIED: _ClassVar[TaskStart]
    TASK_START_CONTINUE: _ClassVar[TaskStart]
    TASK_START_FRESH: _ClassVar[TaskStart]
    TASK_START_ROUND: _ClassVar[TaskStart]
    TASK_START_GIVEN: _ClassVar[TaskStart]

class FailureCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_CODE_UNSPECIFIED: _ClassVar[FailureCode]
    FAILURE_CODE_PROTOCOL_VERSION: _ClassVar[FailureCode]
    FAILURE_CODE_TOKEN: _ClassVar[FailureCode]
    FAILURE_CODE_MODEL: _ClassVar[FailureCode]
    FAILURE_CODE_CODEC: _ClassVar[FailureCode]
    FAILURE_CODE_PROTOCOL: _ClassVar[FailureCode]
    FAILURE_CODE_NON_FINITE: _ClassVar[FailureCode]
    FAILURE_CODE_DATA: _ClassVar[FailureCode]
    FAILURE_CODE_INTERNAL: _ClassVar[FailureCode]
    FAILURE_CODE_CANCELLED: _ClassVar[FailureCode]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT64: DType
DTYPE_INT64: DType
DTYPE_INT32: DType
DTYPE_INT16: DType
DTYPE_INT8: DType
DTYPE_UINT8: DType
DTYPE_BOOL: DType
CODEC_UNSPECIFIED: Codec
CODEC_NONE: Codec
CODEC_FLOAT16: Codec
CODEC_BFLOAT16: Codec
CODEC_INT8_BLOCKWISE: Codec
MODE_UNSPECIFIED: Mode
MODE_TRAIN: Mode
MODE_EVALUATE: Mode
MODE_DELIVER: Mode
MODE_REHEARSE: Mode
TASK_UNSPECIFIED: Task
TASK_CAUSAL_LM: Task
TASK_MASKED_LM: Task
TASK_CLASSIFICATION: Task
OPTIMIZER_HANDOVER_UNSPECIFIED: OptimizerHandover
OPTIMIZER_HANDOVER_FULL: OptimizerHandover
OPTIMIZER_HANDOVER_RESET: OptimizerHandover
OPTIMIZER_HANDOVER_DEVICE: OptimizerHandover
STAGE_UNSPECIFIED: Stage
STAGE_LOAD: Stage
STAGE_FORWARD: Stage
STAGE_ENCODE: Stage
STAGE_WAIT: Stage
STAGE_BACKWARD: Stage
STAGE_OPTIMIZER: Stage
STAGE_TEACHER: Stage
STAGE_DECODE: Stage
STAGE_RECEIVE: Stage
STAGE_STUDENT: Stage
TASK_START_UNSPECIFIED: TaskStart
TASK_START_CONTINUE: TaskStart
TASK_START_FRESH: TaskStart
TASK_START_ROUND: TaskStart
TASK_START_GIVEN: TaskStart
FAILURE_CODE_UNSPECIFIED: FailureCode
FAILURE_CODE_PROTOCOL_VERSION: FailureCode
FAILURE_CODE_TOKEN: FailureCode
FAILURE_CODE_MODEL: FailureCode
FAILURE_CODE_CODEC: FailureCode
FAILURE_CODE_PROTOCOL: FailureCode
FAILURE_CODE_NON_FINITE: FailureCode
FAILURE_CODE_DATA: FailureCode
FAILURE_CODE_INTERNAL: FailureCode
FAILURE_CODE_CANCELLED: FailureCode

class UplinkFrame(_message.Message):
    __slots__ = ("sequence", "hello", "forward", "gradient_norms", "turn_done", "failure", "resume", "checkpoint", "teacher_data", "server_half", "leave", "round_done", "cloud_hello", "open_task", "intermediate", "peft_step", "end_round", "fetch_state", "last", "acknowledged", "chunks")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORMS_FIELD_NUMBER: _ClassVar[int]
    TURN_DONE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DATA_FIELD_NUMBER: _ClassVar[int]
    SERVER_HALF_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    ROUND_DONE_FIELD_NUMBER: _ClassVar[int]
    CLOUD_HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_TASK_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_FIELD_NUMBER: _ClassVar[int]
    PEFT_STEP_FIELD_NUMBER: _ClassVar[int]
    END_ROUND_FIELD_NUMBER: _ClassVar[int]
    FETCH_STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    hello: Hello
    forward: Forward
    gradient_norms: GradientNorms
    turn_done: TurnDone
    failure: Failure
    resume: Resume
    checkpoint: Checkpoint
    teacher_data: TeacherData
    server_half: ServerHalf
    leave: Leave
    round_done: RoundDone
    cloud_hello: CloudHello
    open_task: OpenTask
    intermediate: Intermediate
    peft_step: PeftStep
    end_round: EndRound
    fetch_state: FetchState
    last: bool
    acknowledged: int
    chunks: _containers.RepeatedCompositeFieldContainer[TensorChunk]
    def __init__(self, sequence: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., gradient_norms: _Optional[_Union[GradientNorms, _Mapping]] = ..., turn_done: _Optional[_Union[TurnDone, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., teacher_data: _Optional[_Union[TeacherData, _Mapping]] = ..., server_half: _Optional[_Union[ServerHalf, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., round_done: _Optional[_Union[RoundDone, _Mapping]] = ..., cloud_hello: _Optional[_Union[CloudHello, _Mapping]] = ..., open_task: _Optional[_Union[OpenTask, _Mapping]] = ..., intermediate: _Optional[_Union[Intermediate, _Mapping]] = ..., peft_step: _Optional[_Union[PeftStep, _Mapping]] = ..., end_round: _Optional[_Union[EndRound, _Mapping]] = ..., fetch_state: _Optional[_Union[FetchState, _Mapping]] = ..., last: bool = ..., acknowledged: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[TensorChunk, _Mapping]]] = ...) -> None: ...

class DownlinkFrame(_message.Message):
    __slots__ = ("sequence", "welcome", "begin", "backward", "update", "turn_result", "failure", "resumed", "committed", "round_plan", "round_over", "answer", "task_opened", "intermediate_gradient", "peft_stepped", "task_state", "last", "acknowledged", "chunks")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    TURN_RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ROUND_PLAN_FIELD_NUMBER: _ClassVar[int]
    ROUND_OVER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    TASK_OPENED_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    PEFT_STEPPED_FIELD_NUMBER: _ClassVar[int]
    TASK_STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    welcome: Welcome
    begin: Begin
    backward: Backward
    update: Update
    turn_result: TurnResult
    failure: Failure
    resumed: Resumed
    committed: Committed
    round_plan: RoundPlan
    round_over: RoundOver
    answer: Answer
    task_opened: TaskOpened
    intermediate_gradient: IntermediateGradient
    peft_stepped: PeftStepped
    task_state: TaskState
    last: bool
    acknowledged: int
    chunks: _containers.RepeatedCompositeFieldContainer[TensorChunk]
    def __init__(self, sequence: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., backward: _Optional[_Union[Backward, _Mapping]] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., turn_result: _Optional[_Union[TurnResult, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., round_plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., round_over: _Optional[_Union[RoundOver, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., task_opened: _Optional[_Union[TaskOpened, _Mapping]] = ..., intermediate_gradient: _Optional[_Union[IntermediateGradient, _Mapping]] = ..., peft_stepped: _Optional[_Union[PeftStepped, _Mapping]] = ..., task_state: _Optional[_Union[TaskState, _Mapping]] = ..., last: bool = ..., acknowledged: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[TensorChunk, _Mapping]]] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ("name", "dtype", "shape", "codec", "total_bytes", "num_chunks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    codec: Codec
    total_bytes: int
    num_chunks: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., codec: _Optional[_Union[Codec, str]] = ..., total_bytes: _Optional[int] = ..., num_chunks: _Optional[int] = ...) -> None: ...

class TensorChunk(_message.Message):
    __slots__ = ("tensor", "index", "data", "crc32")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    index: int
    data: bytes
    crc32: int
    def __init__(self, tensor: _Optional[int] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class ModelFingerprint(_message.Message):
    __slots__ = ("architecture", "num_blocks", "hidden_size", "vocab_size", "dtype", "digest")
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    num_blocks: int
    hidden_size: int
    vocab_size: int
    dtype: str
    digest: str
    def __init__(self, architecture: _Optional[str] = ..., num_blocks: _Optional[int] = ..., hidden_size: _Optional[int] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "session_id", "token", "run_id", "node_id", "server_round", "device_name", "student", "codecs", "cached_units", "num_examples", "num_batches", "software", "next_step")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    CACHED_UNITS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session_id: str
    token: bytes
    run_id: int
    node_id: int
    server_round: int
    device_name: str
    student: ModelFingerprint
    codecs: _containers.RepeatedScalarFieldContainer[Codec]
    cached_units: _containers.RepeatedCompositeFieldContainer[UnitVersion]
    num_examples: int
    num_batches: int
    software: str
    next_step: int
    def __init__(self, protocol_version: _Optional[int] = ..., session_id: _Optional[str] = ..., token: _Optional[bytes] = ..., run_id: _Optional[int] = ..., node_id: _Optional[int] = ..., server_round: _Optional[int] = ..., device_name: _Optional[str] = ..., student: _Optional[_Union[ModelFingerprint, _Mapping]] = ..., codecs: _Optional[_Iterable[_Union[Codec, str]]] = ..., cached_units: _Optional[_Iterable[_Union[UnitVersion, _Mapping]]] = ..., num_examples: _Optional[int] = ..., num_batches: _Optional[int] = ..., software: _Optional[str] = ..., next_step: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_version", "software", "resume_token", "grace_period_s")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GRACE_PERIOD_S_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    software: str
    resume_token: bytes
    grace_period_s: float
    def __init__(self, protocol_version: _Optional[int] = ..., software: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., grace_period_s: _Optional[float] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("protocol_version", "session_id", "token", "received")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session_id: str
    token: bytes
    received: int
    def __init__(self, protocol_version: _Optional[int] = ..., session_id: _Optional[str] = ..., token: _Optional[bytes] = ..., received: _Optional[int] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ("received", "resume_token")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    received: int
    resume_token: bytes
    def __init__(self, received: _Optional[int] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class OptimizerSettings(_message.Message):
    __slots__ = ("name", "learning_rate", "beta1", "beta2", "eps", "weight_decay", "momentum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    momentum: float
    def __init__(self, name: _Optional[str] = ..., learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ..., momentum: _Optional[float] = ...) -> None: ...

class UnitVersion(_message.Message):
    __slots__ = ("unit", "version")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    unit: str
    version: str
    def __init__(self, unit: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("mode", "task", "cut", "local_epochs", "max_batches", "gradient_accumulation_steps", "first_step", "order_step", "done_steps", "commit_every_steps", "run", "seed", "uplink_codec", "downlink_codec", "optimizer", "optimizer_handover", "clip_gradients", "frozen", "units", "teacher_embedding_scale", "teacher_cut", "teacher_blocks", "tensors", "ignore_index", "num_microbatches", "pipeline_depth", "trace", "teacher_cache", "teacher_salt")
    MODE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCHES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    ORDER_STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_STEPS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    UPLINK_CODEC_FIELD_NUMBER: _ClassVar[int]
    DOWNLINK_CODEC_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_HANDOVER_FIELD_NUMBER: _ClassVar[int]
    CLIP_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_EMBEDDING_SCALE_FIELD_NUMBER: _ClassVar[int]
    TEACHER_CUT_FIELD_NUMBER: _ClassVar[int]
    TEACHER_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TEACHER_CACHE_FIELD_NUMBER: _ClassVar[int]
    TEACHER_SALT_FIELD_NUMBER: _ClassVar[int]
    mode: Mode
    task: Task
    cut: int
    local_epochs: int
    max_batches: int
    gradient_accumulation_steps: int
    first_step: int
    order_step: int
    done_steps: int
    commit_every_steps: int
    run: str
    seed: int
    uplink_codec: Codec
    downlink_codec: Codec
    optimizer: OptimizerSettings
    optimizer_handover: OptimizerHandover
    clip_gradients: bool
    frozen: _containers.RepeatedScalarFieldContainer[str]
    units: _containers.RepeatedCompositeFieldContainer[UnitVersion]
    teacher_embedding_scale: float
    teacher_cut: int
    teacher_blocks: _containers.RepeatedScalarFieldContainer[str]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    ignore_index: int
    num_microbatches: int
    pipeline_depth: int
    trace: bool
    teacher_cache: bool
    teacher_salt: bytes
    def __init__(self, mode: _Optional[_Union[Mode, str]] = ..., task: _Optional[_Union[Task, str]] = ..., cut: _Optional[int] = ..., local_epochs: _Optional[int] = ..., max_batches: _Optional[int] = ..., gradient_accumulation_steps: _Optional[int] = ..., first_step: _Optional[int] = ..., order_step: _Optional[int] = ..., done_steps: _Optional[int] = ..., commit_every_steps: _Optional[int] = ..., run: _Optional[str] = ..., seed: _Optional[int] = ..., uplink_codec: _Optional[_Union[Codec, str]] = ..., downlink_codec: _Optional[_Union[Codec, str]] = ..., optimizer: _Optional[_Union[OptimizerSettings, _Mapping]] = ..., optimizer_handover: _Optional[_Union[OptimizerHandover, str]] = ..., clip_gradients: bool = ..., frozen: _Optional[_Iterable[str]] = ..., units: _Optional[_Iterable[_Union[UnitVersion, _Mapping]]] = ..., teacher_embedding_scale: _Optional[float] = ..., teacher_cut: _Optional[int] = ..., teacher_blocks: _Optional[_Iterable[str]] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., ignore_index: _Optional[int] = ..., num_microbatches: _Optional[int] = ..., pipeline_depth: _Optional[int] = ..., trace: bool = ..., teacher_cache: bool = ..., teacher_salt: _Optional[bytes] = ...) -> None: ...

class TeacherData(_message.Message):
    __slots__ = ("step", "microbatch", "tensors")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    step: int
    microbatch: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, step: _Optional[int] = ..., microbatch: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("step", "microbatch", "num_microbatches", "step_num_tokens", "tensors", "times")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    NUM_MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    STEP_NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    step: int
    microbatch: int
    num_microbatches: int
    step_num_tokens: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    times: DeviceTimes
    def __init__(self, step: _Optional[int] = ..., microbatch: _Optional[int] = ..., num_microbatches: _Optional[int] = ..., step_num_tokens: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., times: _Optional[_Union[DeviceTimes, _Mapping]] = ...) -> None: ...

class Backward(_message.Message):
    __slots__ = ("step", "microbatch", "update", "tensors", "teacher_kept")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_KEPT_FIELD_NUMBER: _ClassVar[int]
    step: int
    microbatch: int
    update: Update
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    teacher_kept: bool
    def __init__(self, step: _Optional[int] = ..., microbatch: _Optional[int] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., teacher_kept: bool = ...) -> None: ...

class GradientNorms(_message.Message):
    __slots__ = ("step", "norms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    step: int
    norms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, step: _Optional[int] = ..., norms: _Optional[_Iterable[float]] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("step", "learning_rate", "clip_coefficient")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    CLIP_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    step: int
    learning_rate: float
    clip_coefficient: float
    def __init__(self, step: _Optional[int] = ..., learning_rate: _Optional[float] = ..., clip_coefficient: _Optional[float] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("num_steps", "tensors")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, num_steps: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("commit_id", "units", "next_step", "server_round")
    COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    commit_id: str
    units: _containers.RepeatedCompositeFieldContainer[UnitVersion]
    next_step: int
    server_round: int
    def __init__(self, commit_id: _Optional[str] = ..., units: _Optional[_Iterable[_Union[UnitVersion, _Mapping]]] = ..., next_step: _Optional[int] = ..., server_round: _Optional[int] = ...) -> None: ...

class DeviceTimes(_message.Message):
    __slots__ = ("setup_s", "compute_s", "receive_s", "spans", "exchange_s", "energy")
    SETUP_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_S_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    setup_s: float
    compute_s: float
    receive_s: float
    spans: Spans
    exchange_s: float
    energy: MeasuredEnergy
    def __init__(self, setup_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., receive_s: _Optional[float] = ..., spans: _Optional[_Union[Spans, _Mapping]] = ..., exchange_s: _Optional[float] = ..., energy: _Optional[_Union[MeasuredEnergy, _Mapping]] = ...) -> None: ...

class MeasuredEnergy(_message.Message):
    __slots__ = ("joules", "parts")
    JOULES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    joules: float
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, joules: _Optional[float] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("stage", "step", "microbatch", "start_s", "duration_s", "num_dropped")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    stage: _containers.RepeatedScalarFieldContainer[Stage]
    step: _containers.RepeatedScalarFieldContainer[int]
    microbatch: _containers.RepeatedScalarFieldContainer[int]
    start_s: _containers.RepeatedScalarFieldContainer[float]
    duration_s: _containers.RepeatedScalarFieldContainer[float]
    num_dropped: int
    def __init__(self, stage: _Optional[_Iterable[_Union[Stage, str]]] = ..., step: _Optional[_Iterable[int]] = ..., microbatch: _Optional[_Iterable[int]] = ..., start_s: _Optional[_Iterable[float]] = ..., duration_s: _Optional[_Iterable[float]] = ..., num_dropped: _Optional[int] = ...) -> None: ...

class TurnDone(_message.Message):
    __slots__ = ("num_steps", "num_examples", "tensors", "times")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    num_examples: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    times: DeviceTimes
    def __init__(self, num_steps: _Optional[int] = ..., num_examples: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., times: _Optional[_Union[DeviceTimes, _Mapping]] = ...) -> None: ...

class TurnResult(_message.Message):
    __slots__ = ("commit_id", "units", "loss", "cross_entropy", "kl_divergence", "num_tokens", "num_correct")
    COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    CROSS_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    KL_DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CORRECT_FIELD_NUMBER: _ClassVar[int]
    commit_id: str
    units: _containers.RepeatedCompositeFieldContainer[UnitVersion]
    loss: float
    cross_entropy: float
    kl_divergence: float
    num_tokens: int
    num_correct: int
    def __init__(self, commit_id: _Optional[str] = ..., units: _Optional[_Iterable[_Union[UnitVersion, _Mapping]]] = ..., loss: _Optional[float] = ..., cross_entropy: _Optional[float] = ..., kl_divergence: _Optional[float] = ..., num_tokens: _Optional[int] = ..., num_correct: _Optional[int] = ...) -> None: ...

class RoundPlan(_message.Message):
    __slots__ = ("mode", "server_round", "split_point", "num_epochs", "num_iterations", "first_step", "seed", "uplink_codec", "downlink_codec", "optimizer", "optimizer_handover", "clip_gradients", "wanted_units", "reference_loss", "max_new_tokens", "tensors")
    MODE_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    SPLIT_POINT_FIELD_NUMBER: _ClassVar[int]
    NUM_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    NUM_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    UPLINK_CODEC_FIELD_NUMBER: _ClassVar[int]
    DOWNLINK_CODEC_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_HANDOVER_FIELD_NUMBER: _ClassVar[int]
    CLIP_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    WANTED_UNITS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LOSS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    mode: Mode
    server_round: int
    split_point: int
    num_epochs: int
    num_iterations: int
    first_step: int
    seed: int
    uplink_codec: Codec
    downlink_codec: Codec
    optimizer: OptimizerSettings
    optimizer_handover: OptimizerHandover
    clip_gradients: bool
    wanted_units: _containers.RepeatedScalarFieldContainer[str]
    reference_loss: bool
    max_new_tokens: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, mode: _Optional[_Union[Mode, str]] = ..., server_round: _Optional[int] = ..., split_point: _Optional[int] = ..., num_epochs: _Optional[int] = ..., num_iterations: _Optional[int] = ..., first_step: _Optional[int] = ..., seed: _Optional[int] = ..., uplink_codec: _Optional[_Union[Codec, str]] = ..., downlink_codec: _Optional[_Union[Codec, str]] = ..., optimizer: _Optional[_Union[OptimizerSettings, _Mapping]] = ..., optimizer_handover: _Optional[_Union[OptimizerHandover, str]] = ..., clip_gradients: bool = ..., wanted_units: _Optional[_Iterable[str]] = ..., reference_loss: bool = ..., max_new_tokens: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class ServerHalf(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RoundDone(_message.Message):
    __slots__ = ("num_steps", "num_examples", "times")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    num_examples: int
    times: DeviceTimes
    def __init__(self, num_steps: _Optional[int] = ..., num_examples: _Optional[int] = ..., times: _Optional[_Union[DeviceTimes, _Mapping]] = ...) -> None: ...

class RoundOver(_message.Message):
    __slots__ = ("units", "loss", "reference_loss", "num_tokens", "num_missed", "tensors")
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LOSS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_MISSED_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    units: _containers.RepeatedCompositeFieldContainer[UnitVersion]
    loss: float
    reference_loss: float
    num_tokens: int
    num_missed: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, units: _Optional[_Iterable[_Union[UnitVersion, _Mapping]]] = ..., loss: _Optional[float] = ..., reference_loss: _Optional[float] = ..., num_tokens: _Optional[int] = ..., num_missed: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("step", "loss_sum", "num_tokens", "tensors")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss_sum: float
    num_tokens: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, step: _Optional[int] = ..., loss_sum: _Optional[float] = ..., num_tokens: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class CloudHello(_message.Message):
    __slots__ = ("protocol_version", "session_id", "edge", "token", "task", "encoder_width", "codecs", "software", "link_id", "reads_only")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ENCODER_WIDTH_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    LINK_ID_FIELD_NUMBER: _ClassVar[int]
    READS_ONLY_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session_id: str
    edge: str
    token: bytes
    task: str
    encoder_width: int
    codecs: _containers.RepeatedScalarFieldContainer[Codec]
    software: str
    link_id: str
    reads_only: bool
    def __init__(self, protocol_version: _Optional[int] = ..., session_id: _Optional[str] = ..., edge: _Optional[str] = ..., token: _Optional[bytes] = ..., task: _Optional[str] = ..., encoder_width: _Optional[int] = ..., codecs: _Optional[_Iterable[_Union[Codec, str]]] = ..., software: _Optional[str] = ..., link_id: _Optional[str] = ..., reads_only: bool = ...) -> None: ...

class OpenTask(_message.Message):
    __slots__ = ("start", "run", "server_round", "tensors")
    START_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    start: TaskStart
    run: str
    server_round: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, start: _Optional[_Union[TaskStart, str]] = ..., run: _Optional[str] = ..., server_round: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class TaskOpened(_message.Message):
    __slots__ = ("next_step", "vocab_size", "reference_loss", "software", "last", "process_id")
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LOSS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    next_step: int
    vocab_size: int
    reference_loss: bool
    software: str
    last: PeftStepped
    process_id: int
    def __init__(self, next_step: _Optional[int] = ..., vocab_size: _Optional[int] = ..., reference_loss: bool = ..., software: _Optional[str] = ..., last: _Optional[_Union[PeftStepped, _Mapping]] = ..., process_id: _Optional[int] = ...) -> None: ...

class Intermediate(_message.Message):
    __slots__ = ("mode", "device", "step", "max_new_tokens", "tensors")
    MODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    mode: Mode
    device: int
    step: int
    max_new_tokens: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, mode: _Optional[_Union[Mode, str]] = ..., device: _Optional[int] = ..., step: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class IntermediateGradient(_message.Message):
    __slots__ = ("device", "step", "loss", "reference_loss", "num_tokens", "tensors", "mode", "failure", "compute_s")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LOSS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    device: int
    step: int
    loss: float
    reference_loss: float
    num_tokens: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    mode: Mode
    failure: Failure
    compute_s: float
    def __init__(self, device: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., reference_loss: _Optional[float] = ..., num_tokens: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., mode: _Optional[_Union[Mode, str]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., compute_s: _Optional[float] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("device", "step")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    device: int
    step: int
    def __init__(self, device: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class PeftStep(_message.Message):
    __slots__ = ("step", "contributions")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    step: int
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    def __init__(self, step: _Optional[int] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ...) -> None: ...

class PeftStepped(_message.Message):
    __slots__ = ("step", "learning_rate", "grad_norm")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    step: int
    learning_rate: float
    grad_norm: float
    def __init__(self, step: _Optional[int] = ..., learning_rate: _Optional[float] = ..., grad_norm: _Optional[float] = ...) -> None: ...

class EndRound(_message.Message):
    __slots__ = ("run", "server_round")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    run: str
    server_round: int
    def __init__(self, run: _Optional[str] = ..., server_round: _Optional[int] = ...) -> None: ...

class FetchState(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TaskState(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: FailureCode
    message: str
    def __init__(self, code: _Optional[_Union[FailureCode, str]] = ..., message: _Optional[str] = ...) -> None: ...
