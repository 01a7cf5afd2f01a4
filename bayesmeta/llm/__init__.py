"""Language models as sources of log-likelihoods. Heavy modules load only when asked for."""

from bayesmeta.llm.base import AbstractLLM as AbstractLLM
from bayesmeta.llm.base import Quality as Quality
from bayesmeta.llm.base import Sampling as Sampling
from bayesmeta.llm.base import Score as Score
from bayesmeta.llm.base import ScoreRequest as ScoreRequest
from bayesmeta.llm.base import Trace as Trace
